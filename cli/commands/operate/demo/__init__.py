"""``ciml demo``: the whole chain on the sample runs, and its report."""
