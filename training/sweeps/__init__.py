"""Sweeps: an experiment over the axes of data sets and of hyper-parameters, one trial a combination."""
