"""Forms of torch's functions that train many lanes at once."""

from tuner.functions.errors import NotLaneFriendlyError as NotLaneFriendlyError
from tuner.functions.layers import Gru as Gru
from tuner.functions.layers import Lstm as Lstm
from tuner.functions.layers import Rnn as Rnn
from tuner.functions.substitution import LaneFunctions as LaneFunctions
