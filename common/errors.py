"""The failures that callers can act on. Each message names what came, what was wanted and the edit that fixes it."""


class DroverError(Exception):
    """Base of every error this project raises on purpose. The command line prints these without a traceback."""


class ConfigError(DroverError, ValueError):
    """A recipe, a parameter or the environment asks for something impossible."""


class CodecError(DroverError, ValueError):
    """Bytes from the wire are not a message of ours. The message goes to the dead-letter stream."""


class BlobMissing(DroverError, LookupError):
    """A referenced blob has expired or was dropped: its group has ended elsewhere."""


class MediaError(DroverError, ValueError):
    """Media are not of the form that their kind has, or not of the kind that somebody takes."""


class WrongRecipe(DroverError):
    """A message was made under another recipe fingerprint than the receiver runs."""


class SamplingFailed(DroverError):
    """A group could not be sampled, for example because its latents are not finite."""


class ScoringFailed(DroverError):
    """A reward could not score a whole batch. Its samples are masked and counted, never scored zero."""


class WeightSyncFailed(DroverError):
    """Published weights did not arrive whole, did not bind, or did not change what the policy computes."""


class WeightsLost(DroverError):
    """A version is gone with the learner that published it, or none is published yet: wait for the next."""


class TransportError(DroverError, ConnectionError):
    """Redis cannot be reached, refuses the password, or has no memory left."""


class CutOff(TransportError):
    """Redis cannot be reached, or has not answered for as long as it may be away."""


class BlobTooLarge(DroverError, ValueError):
    """A tensor is larger than a blob may be: fewer or smaller samples a group are the way out."""


class CheckpointError(DroverError):
    """A checkpoint, or another file of a run, cannot be written or read."""


class TrainingDiverged(DroverError, ArithmeticError):
    """A loss or gradient stopped being finite; raised before the optimiser step that would have spread it."""
