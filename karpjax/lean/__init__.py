"""What makes models small, quick or private: transformations of any experiment's step, by flags."""
