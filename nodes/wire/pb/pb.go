// Package pb is the generated form of the wire protocol; wire.proto beside it
// is the source. Only package wire uses it.
//
// To remake it: protoc (Debian's protobuf-compiler), protoc-gen-go v1.36.12 and
// protoc-gen-go-grpc v1.6.2 in the PATH, then `go generate ./nodes/wire/pb`.
package pb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative wire.proto
