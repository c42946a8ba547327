"""``ciml connect``: what a CI system and ciml need to know of each other, and the first event that arrives.

Each module of a system is pure: it returns a `Connection`. `files` writes it, `arrivals` waits for its events.
"""
