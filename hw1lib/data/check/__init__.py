"""The data doctor: reads all data once and says what is wrong with it, before anything trains."""
