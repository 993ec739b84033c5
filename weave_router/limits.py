"""Every bound of the product in one file, each with its reason. Imports nothing; every room may read it.

A test in ``tests/`` reaches each bound (``tests/quality/test_limits.py`` checks that every name is used in one).
One section per room, in the order of the layers.
"""

from typing import Final

# --- fastpath ---------------------------------------------------------------------------------------------------

WORKERS_MAX: Final = 15
"""Lanes name the worker in 4 bits; 15 is kept free."""

NODES_MAX: Final = 8192
"""Records a cluster may hold, hence slots of the fast path's node table."""

REKEY_PACKETS: Final = 1 << 28
"""Datagrams sealed under one key before it is renewed, each worker its share: so many of up to 2^11 bytes keep an
attacker's advantage on AES-GCM under 2^-57 (RFC 9001 appendix B.1.1)."""

REKEY_BYTES: Final = 1 << 38
"""Bytes sealed under one key before it is renewed: the same for larger datagrams, which reach this first."""

STATION_SECONDS: Final = 600.0
"""A learned station that was not heard for so long is unknown again: five times a bridge's default, since a flood
crosses every path."""

STATION_HOLD_SECONDS: Final = 60.0
"""A station heard from another node than before stays where it is for so long after its last move, so that two nodes
with one MAC cost no more than one of them its frames."""

# --- store ------------------------------------------------------------------------------------------------------

COUNTER_BLOCK: Final = 1000
"""Handshake counters reserved on disk at once: one commit (0.3 ms) per thousand handshakes; a start skips the rest."""

PEERS_SEEN_MAX: Final = 2 * NODES_MAX
"""Peer keys whose freshness the store remembers, least recently heard dropped first: a full cluster replaced once."""

STORE_BUSY_SECONDS: Final = 5.0
"""How long a write waits for somebody who holds the database open by hand (a backup, the sqlite3 shell)."""

# --- tunnel -----------------------------------------------------------------------------------------------------

TOKENS_MAX: Final = 4
"""Lines of a token file: old, new, and room for a rotation begun while another ends; the worker tries each mac1 key."""

TOKEN_FILE_MAX: Final = 4096
"""Bytes read of a token file: four lines are under 400; whatever is larger is not one."""

HANDSHAKE_DATAGRAM_MAX: Final = 548
"""IPv4 hosts must take 576 bytes (RFC 791), less 28 of headers: handshakes and control messages cross every path."""

DATAGRAM_FLOOR: Final = 548
"""Smallest UDP payload that path MTU discovery assumes, for the same reason."""

DATAGRAM_BASE: Final = 1200
"""UDP payload after a black hole: RFC 8899 section 5.1.2 takes 1,200 for BASE_PLPMTU."""

PATH_EPOCHS: Final = 16
"""Epochs of a lane, 4 bits; a session never sees one twice."""

INDEX_SLOTS: Final = 1 << 20
"""Receiver indices: low 20 bits name the slot, high 12 the generation; slot 0 means none."""

ENDPOINTS_MAX: Final = 4
"""Addresses of one peer that one initiation is sent to: one message 1 to each, the first answer wins."""

ATTEMPTS_OPEN_MAX: Final = 8
"""Messages 1 of one initiation whose answer is still waited for: five fall within the first 5 s."""

UNCONFIRMED_MAX: Final = 8
"""Sessions of one peer that it has not been heard on: an initiation makes at most six within its first 5 s."""

CHALLENGES_OPEN_MAX: Final = 4
"""Candidate addresses of one peer under challenge at a time; a replayer cannot make us remember more."""

HANDSHAKE_QUEUE_MAX: Final = 1024
"""Handshake datagrams that wait for their share of the loop; at 20 % of a core that is about 2 s of work."""

HANDSHAKE_LOOP_SHARE: Final = 0.2
"""Part of the loop's time that handshakes may take: control frames and API calls come first."""

STRANGERS_MAX: Final = 64
"""Addresses of wrong versions and unknown tokens that status remembers; older ones are forgotten."""

# --- mesh -------------------------------------------------------------------------------------------------------

RECORDS_MAX: Final = NODES_MAX - 1
"""Records in one table, the own one included: 8,190 peers (slots 2 to 8,191) and oneself."""

RECORD_BYTES_MAX: Final = 4096
"""A signed record: 8,191 of them stay under 34 MB, and one always fits one frame of a control link."""

RECORD_NAME_MAX: Final = 253
"""Bytes of a node's name: a Kubernetes node name (a DNS subdomain) is at most that long."""

RECORD_ENDPOINTS_MAX: Final = 8
"""Underlay addresses per node: two families on a few uplinks; each is one more address to try."""

RECORD_LINKS_MAX: Final = 48
"""Links per node (and per record): what a public node with NATed neighbours may hold."""

RECORD_PREFIXES_MAX: Final = 64
"""Prefixes per record that are no blocks; more belongs into a block, or the record would outgrow 4 KiB."""

RECORD_GROUPS_MAX: Final = 32
"""Multicast groups per record; a node that joins more asks for every flooded frame instead."""

RECORD_TAGS_MAX: Final = 8
"""Additive tags per record: room for what a later version wants to say, within 4 KiB."""

RECORD_TAG_BYTES_MAX: Final = 32
"""Bytes of a tag's key or value, for the same reason."""

RECORD_LOST_MAX: Final = 8
"""Lost blocks that a record names: whoever lost more is cut off as a whole, and each of these says so."""

RECORD_TRUSTED_MAX: Final = 16
"""Networks of --trusted-subnets, which the record names: about 50 bytes each at most, within 4 KiB."""

RECORD_TOKENS_MAX: Final = 4
"""Token ids per record: a token file has one to four lines."""

RECORD_BURST: Final = 8
"""Records of one origin taken at once; after that one per second (design-control 3)."""

RECORD_OWN_BURST: Final = 6
"""Own records issued at once: below RECORD_BURST, so that delays on the way do not push honest ones over it."""

RECORD_EXPIRE_SECONDS: Final = 24 * 3600
"""A record whose node was unreachable for so long and holds no prefix is forgotten."""

TARGETS_MAX: Final = 256
"""Addresses given by hand: each is retried for ever, so their number bounds the work."""

LINKS_DISCOVERED_MAX: Final = 8
"""Links a node opens by itself to members it read of in the table (targets come on top)."""

LINKS_MAX: Final = RECORD_LINKS_MAX
"""Established links in all, and as many as the record can name."""

DIALS_MAX: Final = 16
"""Connections being opened at one time: a cluster full of dead members must not use up the descriptors."""

OPENINGS_PER_ADDRESS_MAX: Final = 64
"""Half-open inbound links per remote address (IPv6: per /64); the oldest is dropped."""

OPENINGS_MAX: Final = 256
"""Half-open inbound links in all; the oldest is dropped, so that a flood costs itself its place first."""

OPENING_SECONDS: Final = 5.0
"""An opening (TCP connect, three messages, both hellos) must be complete within this."""

OPENING_LOOP_SHARE: Final = 0.2
"""Share of the event loop's time that handshakes of links may take."""

LINK_FRAME_MAX: Final = 65535
"""A sealed frame on a link: its length is a u16."""

LINK_BATCH_BYTES: Final = 48 * 1024
"""Records or digest entries are put into frames of about this size: well under LINK_FRAME_MAX with one more record."""

LINK_UNSENT_MAX: Final = 1 << 20
"""Bytes a link may hold that its socket did not take; the rest waits as records in the outbox, one per node."""

LINK_CLOSE_TEXT_MAX: Final = 200
"""Characters of the reason in a close frame; it is shown in status."""

# --- ipam -------------------------------------------------------------------------------------------------------

COOLDOWN_SECONDS: Final = 60.0
"""How long a released address rests: longer than ARP and neighbour caches of its old peers keep it in use."""

PREFETCH_FREE: Final = 16
"""Fewer free addresses than this and the node asks for blocks: a burst of ADDs on one node, without waiting."""

GIFT_BLOCKS_MAX: Final = 256
"""Blocks in one gift: about 16 KiB of registers, and a node that needs a whole /12 asks sixty-four times."""

IPAM_RUN_BYTES_MAX: Final = 256
"""A signed run of registers: 96 bytes of key and signature, and at most 60 of values; room for a later field."""

IPAM_FRAME_RUNS_MAX: Final = 192
"""Runs in one frame: 192 x 256 bytes stay under LINK_BATCH_BYTES."""

IPAM_FRAME_PEOPLE_MAX: Final = 1024
"""Members in one frame, about 30 bytes each: a cluster of 200 takes one."""

IPAM_SUMS: Final = 256
"""Parts of the range whose registers two nodes compare by 8 bytes each: 2.5 KB in a question."""

IPAM_LETTER_PARTS_MAX: Final = 64
"""Frames of one promise, 3 MB: 12,288 runs beyond what its reader knows. More than that neighbours tell each other
first, then the question is asked again."""

IPAM_LETTERS_SEEN_MAX: Final = 4096
"""Letters remembered, so that each is handed on once: 200 members answering one question make 200."""

IPAM_OUTBOX_BYTES: Final = 8 << 20
"""What a link may hold of IPAM's words while its socket takes nothing: all registers of a /12 in single runs are 2.5
MB; what does not fit is dropped, and the next digest brings it."""

IPAM_STRANGERS_MAX: Final = 64
"""Neighbours of other universes that status remembers: more than a node has links."""

# --- host -------------------------------------------------------------------------------------------------------

TAP_QUEUE_LENGTH: Final = 1000
"""Frames the kernel queues before a TAP read: 4 ms of a flood of small ones, while the worker waits for a CPU. What may
wait to be sealed (4 MB, by flow) is bounded behind it. TCP and its round trip are the same with 128 and 1,000."""

UDP_BUFFER_BYTES: Final = 4 << 20
"""Buffers of the UDP port: some 60 superframes. With the default of 208 KB a 125 us path loses half its speed."""

LOCK_RETRY_SECONDS: Final = 0.05
"""Pause between two tries at a TAP lock whose holder cannot be asked (another namespace)."""

LOCK_WAITERS: Final = 8
"""Connections to a TAP lock that its holder has not looked at yet: one heir and a few that ask who holds it."""

SUCCESSION_SECONDS: Final = 10.0
"""What an heir gets to load before the old router ends without it: five times a start; a pod's end comes after 15 s."""

ESTATE_BYTES_MAX: Final = 36 << 20
"""What an heir reads of its predecessor: RECORDS_MAX records of RECORD_BYTES_MAX, and 18 bytes for each session."""

UNDERLAY_OVERHEAD: Final = 132
"""Underlay MTU minus pod MTU: IPv6 underlay 102, relay wrapper 24, one VLAN tag 4, rounded up to an even 4-byte sum."""

POD_MTU_MIN: Final = 1280
"""Least MTU of IPv6 (RFC 8200 section 5): the kernel takes IPv6 off a link below it."""

POD_MTU_MAX: Final = 65_000
"""A TAP takes 65,521; a frame of this MTU with VLAN tags still fits one 64 KiB buffer."""

SUPERFRAME_DATAGRAM_OVERHEAD: Final = 54
"""Bytes a datagram carries beyond one pod MTU: Ethernet 14, data header 16, descriptor 8, tag 16."""

SUPERFRAME_SEND_BYTES: Final = 65507
"""UDP payload of one send, and of one train of UDP_SEGMENT."""

SUPERFRAME_SEGMENTS: Final = 64
"""Segments of one UDP_SEGMENT send before Linux 6.9."""

PORT_NAME_TRIES: Final = 8
"""Salted names tried for a port when its name is taken by another pod: 36 bits of hash make even one unlikely."""

PORT_UP_SECONDS: Final = 2.0
"""A veth port forwards within milliseconds of both ends being up; longer means that something took it down."""

NEIGHBOURS: Final = 32_768
"""Pods are one link: each pod has an entry for each pod it talks to, and the kernel counts those of all namespaces of a
machine together, 1,024 unless told. 250 pods that talk to 128 others each; an entry takes some 450 bytes, when used."""

FIREWALL_LOOK_SECONDS: Final = 30.0
"""Between looks at the host's firewall when nothing was heard of a change: what comes without a notification (legacy
iptables, the sysctl of bridge netfilter) is seen within this."""

FIREWALL_LOOK_SPACING: Final = 1.0
"""Least time between two looks: kube-proxy and Docker change their rules many times a minute."""

FIREWALL_LOOK_SHARE: Final = 0.05
"""Part of one core that looks may take where listing the rules takes long."""

TRANSLATED_CONNECTIONS: Final = 262_144
"""Connections of pods to Services whose answers are brought back without bridge netfilter, per family: as many as
conntrack itself keeps on a machine of 8 GB or more. 100 bytes each, while they are there."""

TRANSLATED_PAIRS: Final = 65_536
"""Pairs of pods that have such connections, per family: 250 pods that use 256 others each."""

RTNL_MESSAGES: Final = 64
"""Messages of one send to the kernel's rtnetlink: their answers, which it writes before the send returns, all wait in
the socket's buffer, which holds some 250 of them by default."""

SOON_SECONDS: Final = 0.05
"""Detached pairs are deleted together after this pause: 20 pairs cost as much as one (20 ms). And the bridge is looked
at so long after an ADD, once for all ADDs of that time."""

PUT_OFF_SECONDS: Final = 1.0
"""Longest time that the deletion of pairs waits for a moment in which no pod comes or goes: on an idle machine 200 pods
are gone long before, and on a busy one the ports that wait fit the bridge (1,023) beside those of a full node."""

MENDED_SHOWN: Final = 16
"""Changes of the bridge that status names, the latest: whoever makes them makes them again."""

HANDOVER_REQUEST_BYTES: Final = 2 << 20
"""One attach request: a CNI configuration (1 MiB at most, quotes escaped) with its environment, as a rule a few KB."""

HANDOVER_DESCRIPTORS: Final = 2
"""Descriptors of one attach request: the netlink socket and the namespace."""

HANDOVER_READ_SECONDS: Final = 10.0
"""A request that has not arrived whole by then is dropped: the sender is on this machine."""

HANDOVER_RETRY_SECONDS: Final = 0.05
"""Pause after an accept that failed for want of descriptors: long enough not to spin, unseen by who waits."""

HANDOVER_CLIENTS: Final = 64
"""Attach requests served at once; a kubelet starts some ten pods at a time, more wait in the socket's backlog."""

# --- cni --------------------------------------------------------------------------------------------------------

CNI_CONTAINER_ID_MAX: Final = 200
"""A container id: runtimes use 64 hexadecimal digits; with interface and address it must fit the port's alias."""

CNI_NESTING_MAX: Final = 64
"""Levels of a network configuration; runtimes nest a prevResult two deep."""

CNI_GC_MAX: Final = 10_000
"""Attachments that a GC may list as valid: far more than the pods of a node."""

POD_ADDRESSES_MAX: Final = 8
"""IPv4 addresses of one pod: each beyond the first is announced to all nodes, in a record of 64."""

CNI_ROUTES_MAX: Final = 64
"""Routes of one pod beside its addresses' own: one message to the kernel each, within the ADD."""

EXCEPTION_SENT_SECONDS: Final = 2.0
"""An ADD with a MAC of its own waits so long until the record that says so is sent: records go out once per second when
their burst is spent."""

EXCEPTION_CROSSING_SECONDS: Final = 0.25
"""It then waits so long for the record of another node that asked for the same MAC before it heard of this one: some
links of up to 50 ms each."""

CNI_JOURNAL_ENTRIES_MAX: Final = 4096
"""Entries of the DEL journal looked at in one pass: the rest comes in the next; a node runs some hundred pods."""

CNI_JOURNAL_TEMPORARY_SECONDS: Final = 60.0
"""Age at which an unfinished journal entry belongs to nobody: its writer needs milliseconds."""

CNI_ALIVE_SECONDS: Final = 10.0
"""How often the alive file is written: STATUS forgives 60 s, so five writes may fail or be late."""

# --- kube -------------------------------------------------------------------------------------------------------

KUBE_BODY_MAX: Final = 4 << 20
"""Bytes of one answer of the API server: an object in etcd has at most 1.5 MiB, and pages shrink to one object."""

KUBE_PAGE: Final = 50
"""Objects asked for at once: 50 Nodes of 20 KB are 1 MB, so that 1,000 of them never stand in memory together."""

KUBE_OBJECTS_MAX: Final = 1 << 18
"""Objects kept of one kind: as many as the blocks of the largest range; far more than Nodes a mesh takes."""

KUBE_TEXT_MAX: Final = 64 * 1024
"""Characters looked at of kubeadm's configuration, which has some 2 KB."""

KUBE_TARGETS: Final = 12
"""Nodes called on their own account: the mesh finds the others, and one that is dead does not matter."""

KUBE_EVENTS_PENDING: Final = 16
"""Events that wait for the API server; older ones are dropped, their sentences stand in status."""

# --- api --------------------------------------------------------------------------------------------------------

API_BODY_MAX: Final = 64 * 1024
"""A request is a few names and addresses; 1,000 targets by DNS name fit."""

API_CONNECTIONS_MAX: Final = 64
"""Requests under way at once: people, scrapers and a few captures; beyond it the newest is hung up on."""

API_HANDLER_SECONDS: Final = 20.0
"""What one answer may take; below API_CONNECTION_SECONDS, so that the asker still gets the sentence."""

API_CONNECTION_SECONDS: Final = 30.0
"""Age of any connection that is no capture: a client that sends half a request holds nothing for longer."""

REPORT_ROWS_MAX: Final = 20_000
"""Rows of one table in a report: twice the nodes of a full cluster; what is cut is counted in the report."""

CAPTURE_SNAP_MAX: Final = 262_144
"""Bytes kept of one frame: the usual bound of capture readers, above the largest superframe (64 KiB)."""

CONFIG_FILE_MAX: Final = 64 * 1024
"""A configuration file is under 2 KB; the bound keeps a wrong path (a log, a device) from being read in."""

BRIDGE_NAME_MAX: Final = 11
"""Interface names have 15 bytes, and the TAP is called `<bridge>-tap`."""

RANGE_PREFIX_MIN: Final = 8
"""No private IPv4 range is larger than 10.0.0.0/8."""

RANGE_PREFIX_MAX: Final = 28
"""Below it a range has no room for two nodes' blocks (the smallest block is a /30)."""

SEED_NAMES_MAX: Final = 200
"""Names of seed=: as many members as standalone reclaim is promised for."""

SUBNET_PREFIX_MAX: Final = 30
"""Smallest default subnet: two addresses beside its first and last."""

UNIX_PATH_MAX: Final = 107
"""sun_path holds 108 bytes with the terminating zero (unix(7))."""

LOG_QUEUE_MAX: Final = 10_000
"""Records waiting for a stalled stderr: a burst of seconds; what is beyond is dropped and counted, nothing blocks."""
