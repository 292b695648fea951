"""The failures that callers can act on. Each message names the bad value, the wanted one and the edit that fixes it."""


class DroverError(Exception):
    """Base of every error this project raises on purpose. The command line prints these without a traceback."""


class ConfigError(DroverError, ValueError):
    """A recipe, a parameter or the environment asks for something impossible."""


class CodecError(DroverError, ValueError):
    """Received bytes are no drover message. They go to the dead-letter stream."""


class BlobMissing(DroverError, LookupError):
    """A referenced blob has expired or was dropped: its group has ended elsewhere."""


class MediaError(DroverError, ValueError):
    """Media do not have the form of their kind, or are of another kind than the receiver takes."""


class WrongRecipe(DroverError):
    """A message was made under another recipe fingerprint than the receiver runs."""


class SamplingFailed(DroverError):
    """A group could not be sampled, for example because its latents are not finite."""


class ScoringFailed(DroverError):
    """A reward could not score a whole batch. Its samples are masked and counted, never scored zero."""


class WeightSyncFailed(DroverError):
    """Published weights did not arrive whole, do not fit the module, or did not change the policy's output as expected."""


class WeightsLost(DroverError):
    """A version has been dropped, for example because its learner ended, or none is published yet: wait for the next."""


class TransportError(DroverError, ConnectionError):
    """Redis cannot be reached, refuses the password, or has no memory left."""


class CutOff(TransportError):
    """Redis cannot be reached, or has not answered for longer than its clients wait."""


class BlobTooLarge(DroverError, ValueError):
    """A tensor is larger than a blob may be: draw fewer or smaller samples in a group."""


class CheckpointError(DroverError):
    """A checkpoint, or another file of a run, cannot be written or read."""


class TrainingDiverged(DroverError, ArithmeticError):
    """A loss or gradient is not finite; raised before the optimiser step that would have used it."""
