"""The page of a study: paragraphs, tables and pictures, put one under the other and written to a folder.

Knows HTML, Markdown and matplotlib, and what answers are made of; not what was asked.
"""

from mupscale.study.page.parts import Answer, Table, markdown_table
from mupscale.study.page.report import markdown, write
from mupscale.study.spec.space import json_safe

__all__ = ["Answer", "Table", "json_safe", "markdown", "markdown_table", "write"]
