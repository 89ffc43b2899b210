"""What is done to Ray itself: the only place that touches its private parts."""
