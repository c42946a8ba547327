"""The output of jobs: clean lines, templates, signals of failures, and the lines that explain a failure.

    data ─► lines (`lines`) ─► templates (`templates`) ─► signals (`signals`) ─► scores and excerpt (`ranking`)

Every step is a regular expression of RE2 over Arrow arrays, or arithmetic over numpy arrays, so its time is linear in
the output, however hostile that is.
"""
