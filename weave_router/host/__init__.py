"""This machine: TAP, bridge, veth, netns, sysctl, nftables. The only room that knows netlink.

Plans and renderings are pure; files named ``*_driver.py`` carry them out, synchronously, in worker threads.
"""
