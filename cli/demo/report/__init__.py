"""The demo's report: the result as JSON, and its tables, plots and HTML page.

Uses `reports` for style and pages. It recounts nothing: `ciml.cli.demo.checks` does.
"""
