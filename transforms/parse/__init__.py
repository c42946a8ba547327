"""Parse: logs of dstat, dool and pcp-dstat to telemetry tables, hundreds at a time.

Uses Arrow's CSV reader and `ciml.dstat`. It fetches and stores nothing.
"""
