//go:build e2e

package e2e_test

import (
	"net"
	"testing"
	"time"
)

// udp sends a packet and returns the answer.
func udp(t testing.TB, address string) string {
	t.Helper()
	answer, err := tryUDP(address)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func tryUDP(address string) (string, error) {
	socket, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer socket.Close()
	socket.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := socket.Write([]byte("hello")); err != nil {
		return "", err
	}
	buffer := make([]byte, 1500)
	n, err := socket.Read(buffer)
	return string(buffer[:n]), err
}
