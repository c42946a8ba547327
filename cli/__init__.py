"""The command line: the program `ciml`, options that commands share, and the scripts of the talk.

Uses every other package, each imported when a command needs it. It holds no logic that another package could use.
"""
