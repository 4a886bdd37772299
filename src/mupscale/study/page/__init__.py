"""The page of a study: paragraphs, tables and pictures, put one under the other and written to a folder.

Knows HTML, Markdown and matplotlib, and what answers are made of; not what was asked.
"""

from mupscale.study.page.parts import Answer, Part, Table, html_table, markdown_table
from mupscale.study.page.report import REPORT_FILE, json_safe, markdown, write

__all__ = [
    "REPORT_FILE",
    "Answer",
    "Part",
    "Table",
    "html_table",
    "json_safe",
    "markdown",
    "markdown_table",
    "write",
]
