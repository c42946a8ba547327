"""The commands of the group Data: stored runs, dead letters, data sets, drift, plots and clusters."""
