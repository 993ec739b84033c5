"""The kernel's numbers, by the kernel's names, of the few messages that are made by hand.

Nothing else: it decides nothing and knows no message. Called by rtnl.py, rtnl_driver.py and netlink_driver.py.
"""

from typing import Final

# linux/socket.h
AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_BRIDGE: Final = 7
AF_INET6: Final = 10

# linux/netlink.h
NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

# linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5

# linux/if_link.h
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_PROTINFO: Final = 12
IFLA_TXQLEN: Final = 13
IFLA_OPERSTATE: Final = 16
IFLA_LINKINFO: Final = 18
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_GROUP: Final = 27
IFLA_NET_NS_FD: Final = 28
IFLA_EXT_MASK: Final = 29
IFLA_CARRIER: Final = 33
IFLA_GSO_MAX_SIZE: Final = 41
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_INFO_SLAVE_KIND: Final = 4
IFLA_INFO_SLAVE_DATA: Final = 5
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IFLA_BRPORT_STATE: Final = 1
IFLA_BRPORT_MODE: Final = 4
IFLA_BRPORT_LEARNING: Final = 8
IFLA_BRPORT_UNICAST_FLOOD: Final = 9
IFLA_BRPORT_MULTICAST_ROUTER: Final = 25
IFLA_BRPORT_LOCKED: Final = 39
VETH_INFO_PEER: Final = 1

# linux/if_bridge.h
BR_STATE_DISABLED: Final = 0
BR_STATE_FORWARDING: Final = 3

# linux/if_addr.h, linux/neighbour.h
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_FLAGS: Final = 8
NDA_LLADDR: Final = 2
