"""The sections of a sweep's report, each made of what was found of the sweep."""
