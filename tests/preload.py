"The last that the process imports from which others are forked: its garbage is collected once, for all of them."

from tests.conftest import collect_seldom

collect_seldom()
