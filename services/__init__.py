"""Services: what keeps pipelines, receivers and the trainer running, in the foreground or under a supervisor.

Each kind of service has its options (`options`), a class that plans and runs its work, and one driver, supervisor and
status for all. Nothing is computed here: `ciml.pipelines`, `ciml.training` and `ciml.integrations` do the work.
"""

#: The extra that installs the libraries of this room.
EXTRA = "receivers"
