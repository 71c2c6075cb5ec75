// layers: the layers handed out to stages of unlike devices. Internal to src/study.
#ifndef GANG_STUDY_LAYERS_H
#define GANG_STUDY_LAYERS_H

#include "study/estimate.h"

// So that the stages of a replica of the class take as long as each other: with what the layout says is made again and offloaded on each, or
// with any choice, of offloading among these bits. `parts` [groups]. Returns the number of stages that have no room for one more than they
// got; -1 where the layers do not fit.
int gang_share_layers(const struct gang_task *task, const struct gang_class *class, const struct gang_parts *parts, int offload, bool any,
                      struct gang_layout *layout);

#endif
