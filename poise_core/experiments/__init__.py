"""Questions put to a run, apart from its loop."""
