"""The commands of the group Learn: experiments, refresh, models and predictions."""
