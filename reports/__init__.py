"""Reports: plots and HTML pages of data sets, clusters, experiments and sweeps, with one style.

Uses matplotlib and jinja2. It trains nothing and stores nothing but its pages.
"""

#: The extra that installs the libraries of this room.
EXTRA = "reports"
