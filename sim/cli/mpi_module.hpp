#pragma once
// What `coterie sweep` asks of MPI, free of MPI's headers. The implementation is a module of its own
// (mpi_module.cpp), loaded only in processes that a launcher started: MPI takes longer to load than
// most commands take altogether.

namespace coterie {

class Mpi {
 public:
  virtual ~Mpi() = default;  // MPI_Finalize
  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  virtual void barrier() = 0;
  virtual void abort(int code) = 0;
};

// The module's one symbol, "coterie_mpi_start": MPI_Init.
using StartMpi = Mpi* (*)();

}  // namespace coterie
