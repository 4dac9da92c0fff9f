"""Topic fingerprints of campaigns: what a bag of keywords is about, what is near it, and which keywords it lacks."""

from mlflywheel.models.topic_fingerprints.model import TopicFingerprints

__all__ = ["TopicFingerprints"]
