"""What people read about the gate and the slots of a seed.

Pure: a state and names in, a sentence out. Called by service.py alone; sentences about retirements stand in rounds.py.
"""

from __future__ import annotations

from collections.abc import Callable

from .knowledge import electorate
from .values import Gate, NodeId, State


def refusal(state: State, person: Callable[[NodeId], str]) -> str | None:
    """Why new addresses have to wait; None: they need not."""
    match state.gate:
        case Gate.OPEN | Gate.OWN if state.leaving:
            return "this node is leaving and gives no new addresses"
        case Gate.OPEN | Gate.OWN:
            return None
        case Gate.CLOSED:
            others = sorted(person(node) for node in electorate(state) - {state.me})
            return (f"new addresses wait: this host was booted and no other member has answered yet "
                    f"({', '.join(others[:8])}); or promise that it was not retired by `weave-router ipam ungate`")
        case Gate.RESTORED:
            return ("new addresses wait: the store is older than what was seen of this node (a copy put back?); if "
                    "no other copy runs, open it by `weave-router ipam ungate`")
        case Gate.RETIRED:
            return ("this node was retired (`weave-router rmpeer` on another) and owns no addresses: start it anew by "
                    "`weave-router reset --force`, under another name of the seed")
        case Gate.LEFT:
            return "this node has left the universe: start it anew by `weave-router reset`"
    return "this node has no address universe yet: give --ipalloc-init new or seed=NAME,..."


def conflicts(state: State, slot: str, contender: tuple[NodeId, str] | None) -> list[str]:
    """``contender``: who else claims this node's slot, and its name."""
    if not state.contested or state.arbiter:
        return []
    register = state.registers.get(min(state.contested))
    who, key = (contender[1], contender[0].hex()[:12]) if contender else ("another node", "?")
    mine = register is not None and register.owner == state.me
    return [f"the seed slot {slot} is claimed by this node ({state.me.hex()[:12]}) and by {who} ({key}): neither gives "
            f"new addresses from it; reset one of the two{'' if mine else ', best this one'}"]
