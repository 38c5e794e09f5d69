//! Convolutions on channels-last frames.
