"""The method, in numpy and torch. Imports no ROS."""
