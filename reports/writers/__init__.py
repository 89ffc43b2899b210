"""A document as a file: Markdown, HTML, and its tables as LaTeX and CSV."""
