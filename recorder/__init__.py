"""``ciml record``: a command with a recorder beside it. docs/record.md says what is promised."""
