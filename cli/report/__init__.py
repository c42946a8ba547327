"""The report on a run of the whole chain: its model, its plots and its page."""
