"""The nodes, one file each: wiring only. The executable <name> runs the RltNode of rlt_ros/nodes/<name>.py."""
