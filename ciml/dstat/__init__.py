"""The format of dstat, dool and pcp-dstat logs: headers, column names and numbers, as recorders write them.

Uses no other library. It parses no whole logs: `ciml.transforms.parse` does.
"""
