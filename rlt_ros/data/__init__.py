"""Demonstrations and sessions on disk. Imports no ROS."""
