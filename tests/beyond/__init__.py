"""What lies around the server, and its limits: proxies, full disks, time-outs, sessions ended.

Left out of the everyday run; `make beyond` runs it, and `make prove` calls that.
"""
