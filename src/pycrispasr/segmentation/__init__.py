"""Where audio is divided into segments: at pauses in speech, else where it is quietest."""
