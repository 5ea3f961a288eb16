"""The plumbing that every node shares. The only package besides `nodes` that imports ROS."""
