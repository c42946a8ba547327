"""Tables of results that people have (CSV, Parquet, JSON lines, Arrow), read as lines of a listing.

Each row becomes one line, or a reason why it cannot. Pure functions, but for reading the table.
Uses `ciml.events` for the meaning of a line.
"""
