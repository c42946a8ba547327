"""What a data root holds: its objects by kind and format, each verified by the reader of its kind.

`examine` is the whole; `ciml migrate` prints it. docs/compatibility.md lists kinds and formats. Uses the verification
of the packages that write the objects. Only `examine.rewrite` changes something.
"""
