"""The spool of `ciml record`: recordings on disk, sealed, sent, and sent later if the network was away."""
