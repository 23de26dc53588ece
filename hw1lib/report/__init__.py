"""The report: execute the notebooks, then render what they kept.

notebooks  execute notebooks that are out of date, with papermill, and build the report
render     fill the template, write Markdown, HTML and PDF; publish a report, export figures
notes      the author's own paragraphs
"""
