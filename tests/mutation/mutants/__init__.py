"""Plant faults in good bundles and see which gate notices."""
