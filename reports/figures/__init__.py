"""The figures of a report: the data of each, its drawing, and how it looks."""
