"""The commands of `ciml`, in a package for each group of `ciml --help`; each module has a click `command`.

Uses the packages of its subject, imported in the function. It computes nothing: commands read options and print.
"""
