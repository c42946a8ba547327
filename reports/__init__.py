"""Looking at a data set: what is drawn, drawing it, and the page that holds the drawings."""
