#pragma once
// Which ranks are on the same machine, and so may map each other's memory.

#include <string>
#include <vector>

#include "runtime/control/environment.hpp"
#include "runtime/control/group.hpp"

namespace coterie {

// What no two machines have in common: the identity that the kernel drew when it started; the host's
// name where it tells none. Tests that have one machine only let its ranks act as if they were on
// several: COTERIE_RANKS_PER_MACHINE=n puts every n neighbours on a machine of their own. Throws
// InputError where that is no positive integer.
std::string machine_identity(const RankEnvironment& environment, const GetVariable& variable);

// Collective: [num_ranks] whether a rank is on this one's machine.
std::vector<bool> ranks_of_this_machine(ControlGroup& group, const RankEnvironment& environment);

}  // namespace coterie
