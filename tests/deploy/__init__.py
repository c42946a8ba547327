"""What deploy/ holds: the chart as helm renders it, the images, the alert rules."""
