"""What populations are trained on: data sets, objectives, and the tasks that join them to a module."""
