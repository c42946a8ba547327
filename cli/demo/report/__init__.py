"""The result of a demo: its record, the terminal table, the plots and the HTML page."""
